"""`pw ladder`: an ablation at one scale after another. Does the smaller scale predict the larger one?"""
