"""How a student begins: with layers of its teacher."""
