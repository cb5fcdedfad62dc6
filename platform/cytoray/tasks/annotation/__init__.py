"""Cell-type annotation: fine-tuned on labelled cells, evaluated beside simple baselines, asked for labels."""
