//! Finding the own container, and what Docker's ways to be away are called.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use registrar::docker::{Docker, DockerError};
use registrar::own::{Candidate, Traces, candidates};
use support::recorded;

fn id_of(inspection: &str) -> String {
    let inspection: serde_json::Value = serde_json::from_str(inspection).unwrap();
    inspection["Id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_own_container_is_found_by_id_and_not_by_a_host_name_that_is_another_containers_name() {
    let scripted = support::Docker::start();
    let (own, other) = (recorded("inspect-named"), recorded("inspect-any"));
    let id = id_of(&own);
    scripted.knows(&id, own);
    // Docker looks "web" up among the names of containers: there is one called so.
    scripted.knows("web", other);
    let docker = Docker::new(scripted.socket.clone());
    let traces = Traces { cgroup: format!("0::/docker/{id}\n"), hostname: "web".into(), ..Traces::default() };
    let found = docker.own_container(&candidates(None, &traces)).await.unwrap();
    assert_eq!(found.id, Some(id.clone()));

    let only_hostname = Traces { hostname: "web".into(), ..Traces::default() };
    let error = docker.own_container(&candidates(None, &only_hostname)).await.unwrap_err();
    assert_eq!(error, DockerError::Unknown(vec!["web".into()]));
    assert!(error.to_string().contains("--container NAME"), "{error}");

    // The id of an outer container, which this Docker does not know, comes first.
    let nested =
        Traces { cgroup: format!("1:cpu:/docker/{}\n2:cpuset:/docker/{id}", "0".repeat(64)), ..Traces::default() };
    assert_eq!(docker.own_container(&candidates(None, &nested)).await.unwrap().id, Some(id));
}

#[tokio::test]
async fn a_docker_that_is_absent_refuses_or_talks_nonsense_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let candidate = [Candidate::Given("app".into())];
    let ask = async |path: &std::path::Path| {
        Docker::new(path.to_owned()).own_container(&candidate).await.unwrap_err().to_string()
    };
    let absent = ask(&directory.path().join("docker.sock")).await;
    assert!(absent.contains("-v /var/run/docker.sock:") && absent.contains("--docker"), "{absent}");

    let dead = directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let refused = ask(&dead).await;
    assert!(refused.contains("is it running?"), "{refused}");

    let scripted = support::Docker::start();
    scripted.says("app", 403, "{\"message\":\"not\\nallowed\"}".into());
    let forbidden = ask(&scripted.socket).await;
    assert!(forbidden.contains("403 not allowed") && forbidden.contains("app"), "{forbidden}");
    for nonsense in ["<html>", "{\"Id\":5}", "{\"Id\":\"abc"] {
        scripted.knows("app", nonsense.into());
        let error = ask(&scripted.socket).await;
        assert!(error.contains("Docker does not answer") && !error.contains('\n'), "{nonsense}: {error}");
    }
}
