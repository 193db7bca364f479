"""Who renders which clip where. No torch in this process: it is imported in the workers only."""
