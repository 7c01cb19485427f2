"""Pose-driven video as a stream: causal Wan2.1 under UniAnimate's conditions, and its teacher."""
