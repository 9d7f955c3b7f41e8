"""The one place of the version: pyproject.toml reads it here, so a checkout that is not installed has one too."""

VERSION = "0.1.0"
