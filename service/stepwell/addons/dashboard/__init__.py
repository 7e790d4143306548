"""The dashboard and the API's page: plain files, served by the service that they show."""
