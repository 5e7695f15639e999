"""What else becomes of requests and answers: counters, the request log, copies for a challenger."""
