"""Options of every stage: one frozen dataclass per stage, and one declaration per option."""
