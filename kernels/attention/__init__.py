"""Window attention as one kernel forward and two backward; `models.ops.attention` uses them."""
