"""Recipes: from data to a packed bundle, one file each. Every step is kept in a work folder and skipped when done."""
