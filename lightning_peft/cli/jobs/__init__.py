"""One job: from a composed config to a trained model and the files that it leaves."""
