"""What a program takes on accelerators that are not here, told by their compilers."""
