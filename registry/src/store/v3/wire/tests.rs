//! Recorded replies of etcd 3.4.23, and hostile ones.

use proptest::prelude::*;

use super::*;

fn recorded(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/etcd-3.4.23");
    std::fs::read_to_string(format!("{path}/v3-{name}.json")).unwrap()
}

fn whole<T: Headed>(name: &str) -> T {
    match decode(StatusCode::OK, recorded(name).as_bytes()) {
        Ok(Said::Done(value)) => value,
        Ok(Said::Refused(refusal)) => panic!("{name}: {refusal:?}"),
        Err(error) => panic!("{name}: {error}"),
    }
}

#[test]
fn a_recorded_range_gives_all_keys_as_they_are_and_what_is_no_text_as_no_key() {
    let range: Answered = whole("range");
    assert_eq!((range.header.cluster_id.0, range.header.revision.0), (14_443_903_163_313_418_560, 4));
    let entries: Vec<Entry> = range.kvs.into_iter().map(KeyValue::into_entry).collect();
    let shown: Vec<_> = entries.iter().map(|entry| (entry.path.as_str(), entry.value.as_str())).collect();
    let expected = [
        ("/service/evil 127.0.0.1:1 #", "x"),
        ("/service/web/10.0.0.1:80", "running"),
        ("/service/\u{fffd}", "\u{fffd}"),
    ];
    assert_eq!(shown, expected);
    let leases: Vec<_> = entries.iter().map(|entry| entry.ownership.lease > 0).collect();
    assert_eq!(leases, [false, true, false]);
    assert_eq!((entries[1].created_index(), entries[1].ownership.modified_index), (2, 2));
    let last = &whole::<Answered>("range").kvs[2].key;
    assert_eq!((last.text.as_str(), last.as_bytes()), ("/service/\u{fffd}", &b"/service/\xff"[..]));
    assert!(whole::<Answered>("range-empty").kvs.is_empty());
    let more = ["range", "range-empty", "range-page"].map(|name| whole::<Answered>(name).more);
    assert_eq!(more, [false, false, true]);
    assert_eq!(whole::<Answered>("put").header.revision.0, 2);
}

#[test]
fn recorded_transactions_tell_whether_they_were_done_and_what_was_there_instead() {
    let done: TxnAnswered = whole("txn-succeeded");
    assert!(done.succeeded);
    let not_done: TxnAnswered = whole("txn-failed");
    assert!(!not_done.succeeded);
    let found: Vec<_> = not_done.read().map(|entry| entry.map(|entry| entry.path)).collect();
    assert_eq!(found, [Some("/service/web/10.0.0.1:80".to_owned()), None]);
}

#[test]
fn recorded_leases_tell_how_long_they_live() {
    let granted: LeaseAnswered = whole("lease-grant");
    assert!(granted.id.0 > 0 && granted.ttl.0 == Some(5));
    let message = |name: &str| decode_message::<LeaseAnswered>(recorded(name).as_bytes()).unwrap();
    assert_eq!(message("keepalive").ttl.0, Some(5));
    assert_eq!(message("keepalive-gone").ttl.0, Some(0));
    assert_eq!(whole::<LeaseAnswered>("timetolive-gone").ttl.0, None);
    match decode::<Answered>(StatusCode::NOT_FOUND, recorded("error-lease-not-found").as_bytes()) {
        Ok(Said::Refused(refusal)) => assert!(refusal.is_lease_gone(), "{refusal:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_revision_that_is_not_there_is_told_from_other_refusals() {
    for (name, expected) in
        [("error-compacted", true), ("error-future-revision", true), ("error-lease-not-found", false)]
    {
        match decode::<Answered>(StatusCode::BAD_REQUEST, recorded(name).as_bytes()) {
            Ok(Said::Refused(refusal)) => assert_eq!(refusal.is_revision_gone(), expected, "{refusal:?}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_page_is_asked_for_from_one_key_on_at_most_so_many_at_one_revision() {
    let body = |request: Request| match request.body {
        Body::Json(body) => serde_json::from_str::<Value>(&body).unwrap(),
        other => panic!("{other:?}"),
    };
    let (from, end) = (BASE64.encode("/service/a\0"), BASE64.encode("/service0"));
    let first = json!({"key": from, "range_end": end, "limit": "5"});
    assert_eq!(body(page(b"/service/a\0", "/service/", 5, None, false)), first);
    let next = json!({"key": from, "range_end": end, "limit": "5", "revision": "7", "serializable": true});
    assert_eq!(body(page(b"/service/a\0", "/service/", 5, Some(7), false)), next);
    let next = json!({"key": from, "range_end": end, "limit": "5", "revision": "7", "serializable": false});
    assert_eq!(body(page(b"/service/a\0", "/service/", 5, Some(7), true)), next);
}

#[test]
fn a_recorded_watch_tells_of_its_beginning_of_changes_and_of_its_end() {
    let recorded_watch = recorded("watch");
    let messages: Vec<Watched> = recorded_watch.lines().map(|line| decode_message(line.as_bytes()).unwrap()).collect();
    assert!(messages[0].created && messages[0].events.is_empty());
    let events = &messages[1].events;
    assert!(!events[0].is_removal() && events[0].kv.key.text == "/service/web/10.0.0.1:80");
    let removal = events.iter().find(|event| event.is_removal()).expect("a removal");
    let before = removal.prev_kv.as_ref().expect("what was there");
    assert!(before.lease.0 > 0 && removal.kv.mod_revision.0 == 5);
    let compacted: Watched = decode_message(recorded("watch-compacted").as_bytes()).unwrap();
    assert!(compacted.canceled && compacted.compact_revision.0 == 4);
}

#[test]
fn refusals_and_what_another_member_may_not_have_are_told_apart() {
    let refused = |body: &str| match decode::<Answered>(StatusCode::BAD_REQUEST, body.as_bytes()) {
        Ok(Said::Refused(refusal)) => Ok(refusal.message),
        Ok(Said::Done(_)) => panic!("{body}"),
        Err(error) => Err(error),
    };
    // The gateway of etcd 3.6 leaves out `error` and adds `details`.
    let duplicate = r#"{"code":3,"message":"etcdserver: duplicate key given in txn request","details":[]}"#;
    assert_eq!(refused(duplicate), Ok("etcdserver: duplicate key given in txn request".to_owned()));
    let full = r#"{"error":"x","code":8,"message":"etcdserver: mvcc: database space exceeded"}"#;
    assert!(refused(full).is_ok_and(|message| message.contains("alarm disarm")));
    for (body, expected) in [
        (r#"{"error":"x","code":14,"message":"etcdserver: no leader"}"#, "no leader"),
        (r#"{"error":"x","code":8,"message":"etcdserver: too many requests"}"#, "too many requests"),
        (r#"{"error":"x","code":16,"message":"etcdserver: invalid auth token"}"#, "invalid auth token"),
        (r#"{"code":7,"message":"etcdserver: permission denied"}"#, "no role of the user allows that"),
        (r#"{"code":3,"message":"etcdserver: user name is empty"}"#, "it wants a user: --etcd-user"),
        (r#"{"error":"x","code":2,"message":"a\nb"}"#, "a b"),
        ("busy", "without etcd's JSON"),
        (r#"{"code":"x"}"#, "without etcd's JSON"),
    ] {
        let error = refused(body).unwrap_err();
        assert!(error.contains(expected) && !error.contains('\n'), "{body}: {error}");
    }
    let error = decode::<Answered>(StatusCode::NOT_FOUND, b"Not Found\n").unwrap_err();
    assert!(error.contains("it does not serve etcd's v3 API"), "{error}");
}

#[test]
fn what_is_not_etcds_json_is_an_error_in_words() {
    for (body, expected) in [
        ("<html>welcome</html>", "not etcd's JSON"),
        (r#"{"kvs":[{"key":"!!!"}]}"#, "not etcd's JSON"),
        (r#"{"kvs":[{"value":"eA=="}]}"#, "missing field `key`"),
        (r#"{"kvs":{}}"#, "invalid type"),
        (r#"{"header":{"revision":"many"}}"#, "invalid digit"),
        (r#"{"header":{"revision":"99999999999999999999999"}}"#, "too large"),
        (r#"{"kvs":[{"key":"#, "EOF"),
        ("{}", "without etcd's header"),
        (r#"{"header":{"revision":"5"},"kvs":[]}"#, "without etcd's header"),
    ] {
        let error = decode::<Answered>(StatusCode::OK, body.as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{body}: {error}");
    }
    for line in ["", "{}", "[]", r#"{"result":{}}"#, r#"{"result":5}"#, r#"{"result":{"events":[{}]}}"#] {
        assert!(decode_message::<Watched>(line.as_bytes()).is_err(), "{line}");
    }
    let ended = r#"{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader","http_status":"x"}}"#;
    assert_eq!(decode_message::<Watched>(ended.as_bytes()).unwrap_err(), "etcdserver: no leader");
}

#[test]
fn the_end_of_a_range_lies_behind_all_that_begins_with_it() {
    assert_eq!(end("/service/"), bytes("/service0"));
}

proptest! {
    #[test]
    fn no_reply_makes_the_parser_panic(body in ".{0,200}", status in 100..600u16) {
        let status = StatusCode::from_u16(status).unwrap();
        let _ = decode::<Answered>(status, body.as_bytes());
        let _ = decode::<TxnAnswered>(status, body.as_bytes());
        let _ = decode_message::<Watched>(body.as_bytes());
    }
}
