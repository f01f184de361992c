"""All SQL of the Manager: schema, migrations, and the queries of each subject."""
