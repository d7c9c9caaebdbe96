"""The training stack for GLM-4.5V and GLM-4.1V on Megatron-Core. Importing the package imports no torch."""

__version__ = "0.1.0"
