"""Mixed precision without retraining: sensitivities, allocation within a budget, and plans measured as they are."""

from quept.search.table import SensitivityTable

__all__ = ["SensitivityTable"]
