"""Engines: schedule clips on workers and render them. No torch in this process: it is imported in the workers only."""
