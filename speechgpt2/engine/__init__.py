"""Many live sessions on one model: slots, scheduler, runner, and what each session remembers."""
