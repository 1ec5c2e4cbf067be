"""The same maths faster: reference.py says what is computed, cpu/ and cuda/ do it, dispatch.py chooses."""
