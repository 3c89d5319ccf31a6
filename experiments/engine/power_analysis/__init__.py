"""`pw power`: what a design of n prompts and m seeds shows, planned before anything is trained, in `power_planner`."""
