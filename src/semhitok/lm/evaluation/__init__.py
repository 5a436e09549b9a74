"""What a multimodal model can do, in figures: naming, yes or no, drawing, held-out loss."""
