"""`code=main,my-branch`: arms that are trained and sampled by revisions of the code. Begin with `code_arms`."""
