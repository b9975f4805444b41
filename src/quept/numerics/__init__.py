"""Pure tensor functions: torch only, no modules, no models."""
