"""What is made of result files: pages, tables in documents, figures, comparisons."""
