"""What `mini` is taught: texts of dialogues, facts and sentences, drawn from seeded generators."""
