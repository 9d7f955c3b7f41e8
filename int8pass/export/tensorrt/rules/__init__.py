"""The rules of the target "tensorrt", in the order in which findings are listed."""

from int8pass.export.tensorrt.rules.float16 import FLOAT16_RULES
from int8pass.export.tensorrt.rules.network import NETWORK_RULES
from int8pass.export.tensorrt.rules.placement import PLACEMENT_RULES
from int8pass.export.tensorrt.rules.scales import SCALE_RULES

RULES = (*NETWORK_RULES, *SCALE_RULES, *PLACEMENT_RULES, *FLOAT16_RULES)
