"""What a run claims, for machines and for strangers: a model card, a bill of materials, a signature."""
