"""How well a trained backbone makes what it is asked for."""
