"""What a run is going to do: settings, where each comes from, the plan."""
