"""What a Linear looks like under each scheme: golden texts of the dump."""

# ruff: noqa: E501 (golden texts)

import expecttest
import torch.nn.functional as F

from int8pass.passes.canonicalize_linear import canonicalize_linear
from int8pass.passes.linear_to_int8_mixed import linear_to_int8_mixed
from int8pass.passes.select_linear import select_linear
from int8pass.passes.verify_ops import verify_ops
from tests.graphs import holder, program_of, signs, text_of


class TestText(expecttest.TestCase):
    def after(self, scheme, x=None, grad=False):
        module = holder(lambda m, x: F.linear(x, m.w, m.b), w=(6, 16), b=(6,))
        program = program_of(module, signs(4, 16) if x is None else x, grad=grad, scheme=scheme)
        canonicalize_linear(program)
        select_linear(program)
        self.assertEqual(linear_to_int8_mixed(program), 1)
        self.assertGreater(verify_ops(program), 3)
        return text_of(program)

    def test_absmax(self):
        self.assertExpectedInline(
            self.after("absmax"),
            """\
%scale_per_tensor : f32[] = int8pass.scale_per_tensor(%x, None)
%quantize_per_tensor : i8[4, 16] = int8pass.quantize_per_tensor(%x, %scale_per_tensor, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_tensor, %w_codes)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_tensor, %w_scale, None, %b, float32)
return (%dequantize,)
""",
        )

    def test_zeropoint(self):
        self.assertExpectedInline(
            self.after("zeropoint"),
            """\
%asymmetric_scale : f32[] = int8pass.asymmetric_scale(%x, None, 'per_tensor')
%zero_point : i32[] = int8pass.zero_point(%x, %asymmetric_scale, None, 'per_tensor')
%quantize_asymmetric : i8[4, 16] = int8pass.quantize_asymmetric(%x, %asymmetric_scale, %zero_point, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_asymmetric, %w_codes)
%dequantize_asymmetric : f32[4, 6] = int8pass.dequantize_asymmetric(%int8_mm, %asymmetric_scale, %zero_point, %w_scale, %w_code_sums, None, %b, float32)
return (%dequantize_asymmetric,)
""",
        )

    def test_zeropoint_vectorwise(self):
        self.assertExpectedInline(
            self.after("zeropoint-vectorwise"),
            """\
%asymmetric_scale : f32[4] = int8pass.asymmetric_scale(%x, None, 'per_token')
%zero_point : i32[4] = int8pass.zero_point(%x, %asymmetric_scale, None, 'per_token')
%quantize_asymmetric : i8[4, 16] = int8pass.quantize_asymmetric(%x, %asymmetric_scale, %zero_point, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_asymmetric, %w_codes)
%dequantize_asymmetric : f32[4, 6] = int8pass.dequantize_asymmetric(%int8_mm, %asymmetric_scale, %zero_point, %w_scale, %w_code_sums, None, %b, float32)
return (%dequantize_asymmetric,)
""",
        )

    def test_llm_int8_zeropoint(self):
        self.assertExpectedInline(
            self.after("llm.int8-zeropoint"),
            """\
%outlier_mask : bool[16] = int8pass.outlier_mask(%x, 6.0, 'column')
%asymmetric_scale : f32[4] = int8pass.asymmetric_scale(%x, %outlier_mask, 'per_token')
%zero_point : i32[4] = int8pass.zero_point(%x, %asymmetric_scale, %outlier_mask, 'per_token')
%quantize_asymmetric : i8[4, 16] = int8pass.quantize_asymmetric(%x, %asymmetric_scale, %zero_point, %outlier_mask)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_asymmetric, %w_codes)
%outlier_mm : f32[4, 6] = int8pass.outlier_mm(%x, %outlier_mask, %w)
%dequantize_asymmetric : f32[4, 6] = int8pass.dequantize_asymmetric(%int8_mm, %asymmetric_scale, %zero_point, %w_scale, %w_code_sums, %outlier_mm, %b, float32)
return (%dequantize_asymmetric,)
""",
        )

    def test_gradient(self):
        x = signs(4, 16).requires_grad_()
        self.assertExpectedInline(
            self.after("zeropoint-vectorwise", x, grad=True),
            """\
%detach : f32[4, 16] = aten.detach(%x)
%asymmetric_scale : f32[4] = int8pass.asymmetric_scale(%detach, None, 'per_token')
%zero_point : i32[4] = int8pass.zero_point(%detach, %asymmetric_scale, None, 'per_token')
%quantize_asymmetric : i8[4, 16] = int8pass.quantize_asymmetric(%detach, %asymmetric_scale, %zero_point, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_asymmetric, %w_codes)
%dequantize_asymmetric : f32[4, 6] = int8pass.dequantize_asymmetric(%int8_mm, %asymmetric_scale, %zero_point, %w_scale, %w_code_sums, None, None, float32)
%straight_through : f32[4, 6] = int8pass.straight_through(%dequantize_asymmetric, %x, %w_codes, %w_scale)
%add : f32[4, 6] = aten.add.Tensor(%straight_through, %b)
%to : f32[4, 6] = aten.to.dtype(%add, float32)
return (%to,)
""",
        )

    def test_the_forms_of_the_default(self):
        self.assertEqual(self.after("absmax-rowwise"), self.after("absmax-vectorwise"))
        self.assertExpectedInline(
            self.after("absmax-vectorwise"),
            """\
%scale_per_token : f32[4] = int8pass.scale_per_token(%x, None)
%quantize_per_token : i8[4, 16] = int8pass.quantize_per_token(%x, %scale_per_token, None)
%int8_mm : i32[4, 6] = int8pass.int8_mm(%quantize_per_token, %w_codes)
%dequantize : f32[4, 6] = int8pass.dequantize(%int8_mm, %scale_per_token, %w_scale, None, %b, float32)
return (%dequantize,)
""",
        )
