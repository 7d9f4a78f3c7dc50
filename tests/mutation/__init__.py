"""Mutation testing: each small change of the product turns a test red, or is explained."""
