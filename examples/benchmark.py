"""Single Linears in int8, beside bitsandbytes, torchao, ONNX Runtime and others on this machine, with charts.

python examples/benchmark.py              what `int8pass bench linear --out benchmark` runs: most of an hour on 2 cores
python examples/benchmark.py --quick      tiny sizes: a check that all runs
"""

import sys

from int8pass.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["bench", "linear", "--out", "benchmark", *sys.argv[1:]]
    main()
