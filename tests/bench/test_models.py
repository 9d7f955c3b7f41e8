"""`int8pass bench models`: outlier features, conversions, and the command from end to end on a tiny model."""

import pytest
import torch
from torch import nn

from int8pass.bench import decoders, models
from int8pass.bench.measure import Unavailable
from int8pass.bench.model_peers import CONTESTANTS
from int8pass.bench.results import Run

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return decoders.gpt2(quick=True)


@pytest.fixture
def ids():
    return torch.randint(3, 512, (2, decoders.LENGTH), generator=torch.Generator().manual_seed(0))


def inputs_of(model, kind, ids):
    seen = []
    found = [module for module in model.modules() if type(module) is kind]
    hooks = [module.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for module in found]
    model(ids)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("name", ("gpt2", "opt"))
def test_linears_after_a_norm_see_six_outlier_features(name, ids):
    model = decoders.with_linears(getattr(decoders, name)(quick=True))
    columns = [int((x.abs() >= 6).flatten(0, -2).any(0).sum()) for x in inputs_of(model, nn.Linear, ids)]
    assert columns.count(6) >= 2


def test_conv1d_becomes_a_linear_with_the_same_result(gpt2, ids):
    expected = gpt2(ids).logits
    changed = decoders.with_linears(decoders.gpt2(quick=True))
    transposed = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    weights = {name: value.t() if name.endswith(transposed) else value for name, value in gpt2.state_dict().items()}
    changed.load_state_dict(weights)
    assert "Conv1D" not in str(changed)
    torch.testing.assert_close(changed(ids).logits, expected)


def test_the_decoder_gives_what_the_model_gives(gpt2, ids):
    decoder = CONTESTANTS[0].decoder(gpt2, 1, 2)
    token = ids[:1, :1]
    with torch.no_grad():
        torch.testing.assert_close(decoder.prefill(ids), gpt2(ids).logits[:, -1])
        decoder.prefill(ids[:1])
        expected = gpt2(torch.cat([ids[:1], token], 1)).logits[:, -1]
        for _ in range(2):
            decoder.rewind(decoders.LENGTH)
            torch.testing.assert_close(decoder.next(token), expected)
        tokens = decoders.generate(decoder, ids[:1], 4)
        settings = dict(max_new_tokens=4, min_new_tokens=4, do_sample=False)
        assert tokens.tolist() == gpt2.generate(ids[:1], **settings)[:, -4:].tolist()


def test_the_head_stays_in_float():
    changed = decoders.without_head(lambda model: model.bfloat16())(decoders.gpt2(quick=True))
    assert changed.lm_head.weight.dtype is torch.bfloat16  # tied to the embedding
    seen = []
    decoders.without_head(lambda model: seen.append(type(model.lm_head)) or model)(decoders.gpt2(quick=True))
    assert seen == [nn.Identity]


def test_a_call_that_would_take_minutes_is_not_made(gpt2, ids):
    task = models._tasks(ids.repeat(4, 1))[1]
    with pytest.raises(Unavailable, match="not run: about 80 s a call, as a prefill of one prompt took 10 s"):
        models._prepare(CONTESTANTS[0].decoder(gpt2, 1, 8), task, ids, {"slow": 10.0}, "slow")


def test_quick_run(run, tmp_path):
    peers = "float32-eager,quantize_dynamic,llama.cpp"
    quick = ("--quick", "--rounds", "1", "--models", "gpt2")
    code, _, err = run("bench", "models", *quick, "--peers", peers, "--out", tmp_path)
    assert code == 0, err
    result = Run.from_json((tmp_path / "models.json").read_text())
    assert [case.facts["task"] for case in result.cases] == [
        "prefill 1x128",
        "prefill 2x128",
        "one token",
        "generate 4",
    ]
    for case in result.cases:
        assert case["int8mixed"].seconds and case["quantize_dynamic"].seconds and case["float32-eager"].seconds
    assert 0 < result.cases[0]["int8mixed"].error < result.cases[0]["quantize_dynamic"].error < 0.5
    assert (tmp_path / "models-gpt2.png").read_bytes().endswith(b"IEND\xaeB`\x82")


def test_an_unknown_model_is_an_error(run):
    code, out, err = run("bench", "models", "--models", "gpt3")
    assert (code, out) == (2, "") and "--models 'gpt3': there are gpt2, opt, minilm" in err
