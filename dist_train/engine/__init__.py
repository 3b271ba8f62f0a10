"""Engines: one network on DeepSpeed, with its optimizer, loss scale and gradient reduction."""
