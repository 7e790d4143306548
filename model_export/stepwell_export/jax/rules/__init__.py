"""The rules of primitives, by what they do; importing the package registers them."""

from stepwell_export.jax.rules import composed, gathers, loops, pointwise, products, reductions, shapes

__all__ = ["composed", "gathers", "loops", "pointwise", "products", "reductions", "shapes"]
