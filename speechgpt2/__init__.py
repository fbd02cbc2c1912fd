"""speechgpt2: spoken dialogue in one model. See the README."""
