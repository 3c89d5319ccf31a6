"""`pw compare a=… b=…`: a paired comparison of two runs or folders of videos. Begin with `compare_runs`."""
