"""What a configuration will cost before it runs: estimated from sizes, corrected by what finished jobs measured."""
