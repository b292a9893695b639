"""What `bench/run` is made of: servers, rows, one measured run, statistics, the chart. See bench/README.md."""
