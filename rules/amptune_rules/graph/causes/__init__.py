"""What the larger graph rules find, a module for each kind of cause: functions that give findings of the rule that
asks."""
