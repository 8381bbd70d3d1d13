"""How networks become models: one module per library that writes, imported when used."""
