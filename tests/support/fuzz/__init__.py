"""Fuzzing of parsers. Imports nothing: what the fuzzer instruments must not be loaded before it."""
