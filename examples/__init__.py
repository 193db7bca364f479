"""Programs that show how to use the package; each runs in the tests."""
