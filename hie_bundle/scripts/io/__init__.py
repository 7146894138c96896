"""Files: volumes, weights, curves, images that users hand in; read with checks, written whole or not at all."""
