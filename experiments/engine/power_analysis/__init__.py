"""`pw power`: what n prompts and m seeds can show, planned before any training. Begin with `power_planner`."""
