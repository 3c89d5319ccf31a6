"""`pw compare a=… b=…`: two runs or folders of videos, prompt by prompt or seed by seed. Begin with `compare_runs`."""
