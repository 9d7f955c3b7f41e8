"""Every exception that int8pass raises on purpose. All derive from `Int8PassError`."""


class Int8PassError(Exception):
    """Base class of the errors of int8pass."""


class ConfigError(Int8PassError, ValueError):
    """An option is unknown, of the wrong type, or in conflict with another one."""


class CaptureError(Int8PassError, RuntimeError):
    """A model could not be turned into a graph; the message says what to pass instead."""


class WeightError(Int8PassError, ValueError):
    """A weight cannot be quantized: it holds NaN or infinity, or would overflow float32 sums."""


class FreedWeightError(Int8PassError, RuntimeError):
    """A float weight was read after `free_weights=True` had released its storage."""


class VerificationError(Int8PassError, AssertionError):
    """A graph holds an int8pass op with a dtype or shape that the IR table does not allow."""


class CompilerNotFoundError(Int8PassError, RuntimeError):
    """Inductor needs a C++ compiler and none was found."""


class UnsupportedDeviceError(Int8PassError, RuntimeError):
    """A GPU lacks what the int8 kernels need; the message says what, and what runs there instead."""


class MissingDependencyError(Int8PassError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""


class ModelError(Int8PassError, ValueError):
    """A MODEL argument of the command line names nothing that can be loaded."""


class ReportFileError(Int8PassError, ValueError):
    """A file or folder that is to be compared is no report, or no dump."""


class ProfileError(Int8PassError, ValueError):
    """A calibration profile cannot be read, or is that of another model; the message names the layer that differs."""


class ExportError(Int8PassError, RuntimeError):
    """A model could not be turned into a file; the message says why and what to do."""


class OutputError(Int8PassError, OSError):
    """A file could not be written where it was asked for: no such folder, no permission, no space."""


class OnnxFileError(Int8PassError, ValueError):
    """A file is missing, is not ONNX, breaks ONNX's own rules, or lacks its external data."""


class EngineError(Int8PassError, RuntimeError):
    """A TensorRT engine could not be built, read or run; the message says what TensorRT reported."""
