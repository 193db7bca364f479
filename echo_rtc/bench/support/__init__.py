"""What benches and tests share: servers, callers, visitors and attacks, and the form of a report."""
