"""Subject-to-video with BindWeave: the subjects of one to four pictures appear in a video of a prompt."""
