"""For those who work on the template itself: bench/, campaigns/ that kill runs, and a fuzzer of configs."""
