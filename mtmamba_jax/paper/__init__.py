"""The paper's tables: what they print, and what our models cost and finished runs scored."""
