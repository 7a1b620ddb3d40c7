"""What tests stand on: deployments, clients, proxies, facts."""
